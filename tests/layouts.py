"""Tiny copies of published data sets: one folder each, with the files, fields and media paths of the originals."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def video_r1_records():
    """One record of each problem type; the OCR one is an image."""
    common = {"data_type": "video", "options": [], "process": "", "data_source": "made"}
    choice = {
        "problem_id": 1,
        "problem": "What color is scene 1?",
        "problem_type": "multiple choice",
        "options": ["A. red", "B. blue"],
        "solution": "<answer>B</answer>",
        "path": "./made/0.mp4",
    }
    others = [
        (2, "How many scenes?", "numerical", "<answer>16</answer>", "./made/1.mp4"),
        (3, "What does it say?", "OCR", "<answer>STOP</answer>", "./made/0.png"),
        (4, "What happens?", "free-form", "<answer>colors change</answer>", "./made/2.mp4"),
        (5, "How long is it?", "regression", "<answer>4.0</answer>", "./made/3.mp4"),
    ]
    names = ("problem_id", "problem", "problem_type", "solution", "path")
    records = [{**common, **choice}, *({**common, **dict(zip(names, values, strict=True))} for values in others)]
    records[2]["data_type"] = "image"
    return records


def write_video_r1(folder, clips, pictures, records=None, name="Video-R1-260k.json"):
    put(folder / "made", clips, pictures)
    (folder / name).write_text(json.dumps(video_r1_records() if records is None else records))
    return folder


def write_video_r1_cot(folder, clips, pictures, records=None):
    records = records or [{**record, "process": "<think>I look.</think>"} for record in video_r1_records()]
    return write_video_r1(folder, clips, pictures, records, "Video-R1-COT-165k.json")


def seed_bench_records():
    return [
        {
            "sample_id": f"P01_{number}",
            "video_source": "EpicKitchens",
            "video_basename": f"{number}.mp4",
            "current_observation_basename": f"{number}.png",
            "task_goal": "make tea",
            "question": "The video shows the task so far and the image the present. What next, to make tea?",
            **{f"choice_{letter}": f"{verb} cup" for letter, verb in zip("abcd", VERBS, strict=True)},
            "golden_choice_idx": "C",
        }
        for number in range(2)
    ]


VERBS = ("wash", "dry", "fill", "drop")


def write_seed_bench_r1(folder, clips, pictures, records=None):
    put(folder / "videos" / "EpicKitchens", clips, [])
    put(folder / "images" / "EpicKitchens", [], pictures)
    (folder / "annotations").mkdir(exist_ok=True)
    for name in ("training_6k", "validation_L1"):
        write_lines(folder / "annotations" / f"{name}.jsonl", records or seed_bench_records())
    return folder


def next_qa_records(video="video", answers=("0", "3")):
    options = {f"a{number}": text for number, text in enumerate(("one", "two", "three", "four", "five"))}
    common = {"frame_count": 369, "width": 640, "height": 480, "type": "TC"}
    return [
        {video: "4010069381", **common, "question": "how many play", "answer": answers[0], "qid": 6, **options},
        {video: "3238737531", **common, "question": "what comes next", "answer": answers[1], "qid": 7, **options},
    ]


def write_next_qa(folder, clips, pictures, records=None):
    """The second clip has its longer name, as in the map."""
    (folder / "NExTVideo" / "1164").mkdir(parents=True, exist_ok=True)
    shutil.copy(clips[0], folder / "NExTVideo" / "4010069381.mp4")
    shutil.copy(clips[1], folder / "NExTVideo" / "1164" / "3238737531.mp4")
    (folder / "map_vid_vidorID.json").write_text(json.dumps({"3238737531": "1164/3238737531"}))
    for split in ("train", "val", "test"):
        write_table(folder / f"{split}.csv", records or next_qa_records())
    return folder


def next_gqa_spans():
    return {
        "4010069381": {"location": {"6": [[0.0, 1.5], [2.25, 3]]}, "duration": 4, "fps": 4.0},
        "3238737531": {"location": {"99": [[0, 1]]}, "duration": 4.0, "fps": 4.0},
    }


def write_next_gqa(folder, clips, pictures, records=None, spans=None):
    """The first question has two spans, the second none."""
    write_next_qa(folder, clips, pictures, records or next_qa_records("video_id", ("one", "four")))
    (folder / "gsub_val.json").write_text(json.dumps(spans or next_gqa_spans()))
    return folder


def virl39k_records():
    rates = {"PassRate_32BTrained": 1.0, "PassRate_7BBase": 0.25, "category": "Geometry", "source": "made"}
    return [
        {
            "qid": "made-1",
            "question": "<image>Find x.",
            "answer": "\\boxed{\\frac{1}{2}}",
            "image": ["images/0.png"],
            **rates,
        },
        {
            "qid": "made-2",
            "question": "<image>\n<image>\nAdd.",
            "answer": "$\\boxed{12}$",
            "image": ["images/1.png", "images/2.png"],
            **rates,
        },
    ]


def write_virl39k(folder, clips, pictures, records=None):
    put(folder / "images", [], pictures)
    pq.write_table(pa.Table.from_pylist(records or virl39k_records()), folder / "39Krelease.parquet")
    return folder


def geometry3k_records(pictures):
    image = {"bytes": Path(pictures[0]).read_bytes(), "path": None}
    return [
        {"images": [image], "problem": "<image>Find y.", "answer": "2 \\sqrt { 221 }"},
        {"images": [image], "problem": "<image>Find z. Round to the nearest tenth.", "answer": "28.0"},
    ]


def write_geometry3k(folder, clips, pictures, records=None):
    (folder / "data").mkdir(exist_ok=True)
    table = pa.Table.from_pylist(records or geometry3k_records(pictures))
    for split in ("train", "validation", "test"):
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def jsonl_records():
    return [
        {"id": "a", "question": "How many flashes?", "video": "0.mp4", "problem_type": "numerical", "answer": "3"},
        {
            "question": "Which is <image> like, <video> or <video>?",
            "videos": ["0.mp4", "1.mp4"],
            "images": ["0.png"],
            "problem_type": "multiple choice",
            "options": ["the first", "the second"],
            "answer": "the second",
        },
        {
            "id": "c",
            "question": "When is it red?",
            "video": "2.mp4",
            "problem_type": "temporal grounding",
            "answer": "1.0 to 2.5",
            "time_spans": [[1, 2.5]],
        },
        {"id": "d", "question": "What is 1 plus 1?", "problem_type": "mathematics", "answer": "2"},
    ]


def write_jsonl(folder, clips, pictures, records=None):
    put(folder, clips, pictures)
    write_lines(folder / "train.jsonl", records or jsonl_records())
    return folder


LAYOUTS = {  # adapter -> (writer, split to read)
    "video-r1": (write_video_r1, "train"),
    "video-r1-cot": (write_video_r1_cot, "train"),
    "seed-bench-r1": (write_seed_bench_r1, "train"),
    "next-qa": (write_next_qa, "val"),
    "next-gqa": (write_next_gqa, "val"),
    "next-gqa-grounding": (write_next_gqa, "val"),
    "virl39k": (write_virl39k, "train"),
    "geometry3k": (write_geometry3k, "train"),
    "jsonl": (write_jsonl, "train"),
}


def put(folder, clips, pictures):
    """Media as 0.mp4, 1.mp4, ... and 0.png, 1.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(clips):
        shutil.copy(path, folder / f"{number}.mp4")
    for number, path in enumerate(pictures):
        shutil.copy(path, folder / f"{number}.png")


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_table(path, records):
    with path.open("w", newline="") as lines:
        table = csv.DictWriter(lines, records[0])
        table.writeheader()
        table.writerows(records)
