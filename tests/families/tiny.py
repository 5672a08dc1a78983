"""A tiny random model and its real processor for every family, without any download.

One byte-level vocabulary serves all; each family adds its own special tokens and writes its own turns and placeholders.
Frames of 56x56 to 112x112 pixels make 4 to 16 tokens. Gemma's tokenizer puts `<bos>` before every text and its template
writes it too: encode a rendered prompt with `add_special_tokens=False`.
"""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

from transformers import (
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma4AudioFeatureExtractor,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    MiniCPMV4_6ImageProcessor,
    MiniCPMV4_6Processor,
    MiniCPMV4_6VideoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE as SMOLVLM_TEMPLATE

from tests.families.parts import Tiny, build, chatml, decoder, template, tokenizer

# Qwen

QWEN = {"others": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")}
QWEN_TEMPLATE = chatml(
    image="<|vision_start|><|image_pad|><|vision_end|>", video="<|vision_start|><|video_pad|><|vision_end|>"
)


def qwen_ids(words) -> dict:
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{key}_token_id": words.convert_tokens_to_ids(f"<|{token}|>") for key, token in names.items()}


def qwen(name: str, processor_class, patch: int, video_processor, text: dict, vision: dict, starts=None) -> Tiny:
    side = 2 * patch
    processor = processor_class(
        image_processor=Qwen2VLImageProcessor(
            patch_size=patch, size={"shortest_edge": side * side, "longest_edge": 224 * 224}
        ),
        tokenizer=tokenizer(**QWEN),
        video_processor=video_processor,
        chat_template=QWEN_TEMPLATE,
    )
    tower = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.1,
    }
    return build(name, processor, name, text, {**tower, **vision}, starts, **qwen_ids(processor.tokenizer))


def qwen2_video_processor():
    return Qwen2VLVideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 224 * 224}, cap_pixels_per_frame=False)


def qwen2_decoder() -> dict:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = decoder(rope_parameters=rope)
    text.pop("head_dim")  # hidden_size / num_attention_heads in these classes
    return text


def qwen2_vl() -> Tiny:
    vision = {"embed_dim": 32, "mlp_ratio": 2, "hidden_size": 64}
    return qwen("qwen2_vl", Qwen2VLProcessor, 14, qwen2_video_processor(), qwen2_decoder(), vision)


def qwen2_5_vl() -> Tiny:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "tokens_per_second": 4,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    return qwen("qwen2_5_vl", Qwen2_5_VLProcessor, 14, qwen2_video_processor(), qwen2_decoder(), vision)


def qwen3(name: str, text: dict, starts=None, **vision) -> Tiny:
    """`longest_edge` of the video processor counts the pixels of all frames."""
    video_processor = Qwen3VLVideoProcessor(
        size={"shortest_edge": 32 * 32, "longest_edge": 16 * 112 * 112}, cap_pixels_per_frame=False
    )
    tower = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "num_position_embeddings": 16, **vision}
    return qwen(name, Qwen3VLProcessor, 16, video_processor, text, tower, starts)


def interleaved(section: list[int], **more) -> dict:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section, "mrope_interleaved": True, **more}


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "output_router_logits": False}


def qwen3_vl() -> Tiny:
    text = decoder(rope_parameters=interleaved([4, 2, 2]))
    return qwen3("qwen3_vl", text, depth=3, deepstack_visual_indexes=[0, 1])


def qwen3_vl_moe() -> Tiny:
    text = decoder(rope_parameters=interleaved([4, 2, 2]), **EXPERTS)
    return qwen3("qwen3_vl_moe", text, depth=3, deepstack_visual_indexes=[0, 1])


# Linear layers forget about a sixth of their state a token, and their norm does not blow small values up: rounding
# stays near 1e-5 in log-probs (1e-3 with the classes' own values and random weights).
SLOW = {"A_log": -2.0}


def hybrid(**changes) -> dict:
    """Eight layers, every fourth with full attention, where positions turn a quarter of each head."""
    return decoder(
        num_hidden_layers=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        rope_parameters=interleaved([4, 2, 2], partial_rotary_factor=0.25),
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rms_norm_eps=1e-2,
        **changes,
    )


def qwen3_5() -> Tiny:
    return qwen3("qwen3_5", hybrid(), SLOW)


def qwen3_5_moe() -> Tiny:
    return qwen3("qwen3_5_moe", hybrid(**EXPERTS, shared_expert_intermediate_size=64), SLOW)


# GLM


def glm(name: str, processor_class, image_processor, video_processor, **more) -> Tiny:
    """Sizes count the pixels of all frames; a picture counts as two."""
    size = {"shortest_edge": 2 * 28 * 28, "longest_edge": 16 * 112 * 112}
    words = tokenizer(
        eos="<|user|>",
        others=(
            "[gMASK]",
            "<sop>",
            "<|assistant|>",
            *(f"<|{edge}_of_{kind}|>" for kind in ("image", "video") for edge in ("begin", "end")),
            "<|image|>",
            "<|video|>",
        ),
    )
    processor = processor_class(
        image_processor=image_processor(size=size),
        tokenizer=words,
        video_processor=video_processor(size=size),
        chat_template=template(
            "'<|' ~ role ~ '|>\\n'",
            "",
            "<|assistant|>\n",
            before="[gMASK]<sop>",
            image="<|begin_of_image|><|image|><|end_of_image|>",
            video="<|begin_of_video|><|video|><|end_of_video|>",
        ),
    )
    ids = {f"{kind}_token_id": words.convert_tokens_to_ids(f"<|{kind}|>") for kind in ("image", "video")}
    for kind in ("image", "video"):
        for edge, token in (("start", "begin"), ("end", "end")):
            ids[f"{kind}_{edge}_token_id"] = words.convert_tokens_to_ids(f"<|{token}_of_{kind}|>")
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 3, 3],
        "partial_rotary_factor": 0.5,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "out_hidden_size": 64,
        "intermediate_size": 64,
        "initializer_range": 0.1,
    }
    text = decoder(num_attention_heads=2, num_key_value_heads=1, head_dim=32, rope_parameters=rope, **more)
    return build(name, processor, name, text, vision, **ids)


def glm4v() -> Tiny:
    return glm("glm4v", Glm4vProcessor, Glm4vImageProcessor, Glm4vVideoProcessor)


def glm4v_moe() -> Tiny:
    """As GLM-4.5V: the first layer has no experts, the others one that all tokens share besides."""
    experts = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "use_qk_norm": False}
    return glm("glm4v_moe", Glm4vProcessor, Glm4vImageProcessor, Glm4vVideoProcessor, **experts, **groups)


def glm46v() -> Tiny:
    return glm("glm46v", Glm46VProcessor, Glm46VImageProcessor, Glm46VVideoProcessor)


# Families whose frames are pictures to the processor


def internvl(name: str = "internvl", **text) -> Tiny:
    """Tiles of 56x56 with 4 tokens each: one to four of them and, with more than one, the whole picture."""
    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    side = {"height": 56, "width": 56}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=side, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=words,
        video_processor=InternVLVideoProcessor(size=side),
        image_seq_length=4,
        chat_template=chatml(image="<IMG_CONTEXT>\n", video="<video>\n"),
    )
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": [56, 56],
        "patch_size": [14, 14],
    }
    return build(
        name,
        processor,
        "internvl",
        decoder(**{"model_type": "qwen3", **text}),
        vision,
        image_token_id=words.context_image_token_id,
        image_seq_length=4,
    )


def internvl_moe() -> Tiny:
    return internvl("internvl_moe", model_type="qwen3_moe", norm_topk_prob=True, **EXPERTS)


def smolvlm() -> Tiny:
    """Pictures are scaled to 128 pixels and split into tiles of 64x64, 4 tokens each, with the whole picture last."""
    words = tokenizer(
        eos="<end_of_utterance>",
        others=("<|im_start|>", *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))),
        image_token="<image>",
        video_token="<video>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size={"longest_edge": 128}, max_image_size={"longest_edge": 64}),
        tokenizer=words,
        video_processor=SmolVLMVideoProcessor(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 64}, num_frames=64, fps=1
        ),
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 64,
        "patch_size": 16,
    }
    return build(
        "smolvlm",
        processor,
        "smolvlm",
        decoder(model_type="llama"),
        vision,
        image_token_id=words.image_token_id,
        scale_factor=2,
    )


# Gemma

GEMMA = {"bos": "<bos>"}  # token 0 pads, as in the published vocabulary
GEMMA_LAYERS = ["sliding_attention", "sliding_attention", "full_attention"]
GEMMA_ROLE = "('model' if role == 'assistant' else role)"


def siglip() -> dict:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
    }


def gemma3() -> Tiny:
    """Pictures of 56x56, 4 tokens each; no video."""
    words = tokenizer(
        **GEMMA,
        eos="<end_of_turn>",
        others=("<start_of_turn>", *("\n" * count for count in range(1, 5))),
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=words,
        image_seq_length=4,
        chat_template=template(
            f"'<start_of_turn>' ~ {GEMMA_ROLE} ~ '\\n'",
            "<end_of_turn>\n",
            "<start_of_turn>model\n",
            before="<bos>",
            image="<start_of_image>",
        ),
    )
    text = decoder(num_hidden_layers=6, layer_types=GEMMA_LAYERS * 2, sliding_window=32, query_pre_attn_scalar=16)
    return build(
        "gemma3",
        processor,
        "gemma3",
        text,
        siglip(),
        tie_word_embeddings=True,
        mm_tokens_per_image=4,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
    )


def gemma4_any(name: str, text: dict, **vision) -> Tiny:
    """The processors take 70 tokens a picture or more and scale to that; without scaling, 28x28 pixels are a token.

    So media must have sides that are multiples of 28.
    """
    words = tokenizer(
        **GEMMA,
        eos="<turn|>",
        others=("<|turn>", "<|video|>"),
        boi_token="<|image>",
        eoi_token="<image|>",
        image_token="<|image|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
        audio_token="<|audio|>",
    )
    sizes = {"patch_size": 14, "pooling_kernel_size": 2, "max_soft_tokens": 70, "do_resize": False}
    processor = Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(**sizes),
        tokenizer=words,
        video_processor=Gemma4VideoProcessor(**sizes),
        chat_template=template(
            f"'<|turn>' ~ {GEMMA_ROLE} ~ '\\n'",
            "<turn|>\n",
            "<|turn>model\n",
            before="<bos>",
            image="<|image|>",
            video="<|video|>",
        ),
    )
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": 14,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
        "initializer_range": 0.1,
        **vision,
    }
    kinds = ("image", "boi", "eoi", "boa", "audio")
    return build(
        name,
        processor,
        "gemma4",
        decoder(
            sliding_window=32,
            global_head_dim=32,
            final_logit_softcapping=30.0,
            vocab_size_per_layer_input=len(words),
            **text,
        ),
        tower,
        # Scores are not divided by the root of the head's size: the norms do it.
        {"q_norm.weight": 0.4, "k_norm.weight": 0.4},
        tie_word_embeddings=True,
        audio_config=None,
        video_token_id=processor.video_token_id,
        eoa_token_index=words.eoa_token_id,
        **{f"{kind}_token_id": getattr(words, f"{kind}_token_id") for kind in kinds},
    )


def gemma4() -> Tiny:
    """As E2B and E4B: an input a layer, and two last layers that use the keys of the layers before them."""
    text = {
        "num_hidden_layers": 8,
        "layer_types": [*GEMMA_LAYERS * 2, "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 8,
    }
    return gemma4_any("gemma4", text)


def gemma4_large() -> Tiny:
    """As 26B and 31B: an image's tokens see each other in the layers with a window; keys are the values in the others."""
    text = {
        "num_hidden_layers": 6,
        "layer_types": GEMMA_LAYERS * 2,
        "use_bidirectional_attention": "vision",
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "hidden_size_per_layer_input": 0,
    }
    return gemma4_any("gemma4_large", text, standardize=True)


# Families without support for video here: refusals, and TRL's own path for images


def llava_onevision() -> Tiny:
    """A picture is scaled into the best of four sizes and cut into tiles of 56x56, 16 tokens each."""
    pinpoints = [[56, 56], [56, 112], [112, 56], [112, 112]]
    side = {"height": 56, "width": 56}
    words = tokenizer(image_token="<image>", video_token="<video>")
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=pinpoints),
        tokenizer=words,
        video_processor=LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chatml(image="<image>", video="<video>"),
    )
    text = decoder(model_type="qwen2")
    text.pop("head_dim")
    return build(
        "llava_onevision",
        processor,
        "llava_onevision",
        text,
        siglip(),
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
        image_grid_pinpoints=pinpoints,
    )


def minicpmv4_6() -> Tiny:
    """Pictures and frames are scaled to about 112x112, 4 tokens; a larger picture is cut into slices besides."""
    words = tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        image_start_token="<image>",
        image_end_token="</image>",
        slice_start_token="<slice>",
        slice_end_token="</slice>",
        image_id_start_token="<image_id>",
        image_id_end_token="</image_id>",
    )
    sizes = {"scale_resolution": 112, "max_slice_nums": 4, "patch_size": 14}
    processor = MiniCPMV4_6Processor(
        image_processor=MiniCPMV4_6ImageProcessor(**sizes),
        video_processor=MiniCPMV4_6VideoProcessor(**sizes),
        tokenizer=words,
        chat_template=chatml(image="<|image_pad|>\n", video="<|video_pad|>\n"),
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 112,
        "patch_size": 14,
    }
    return build(
        "minicpmv4_6",
        processor,
        "minicpmv4_6",
        hybrid(model_type="qwen3_5_text"),
        vision,
        SLOW,
        insert_layer_id=0,
        image_size=112,
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
    )


FAMILIES: dict[str, Callable[[], Tiny]] = {
    builder.__name__: builder
    for builder in (
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        qwen3_vl_moe,
        qwen3_5,
        qwen3_5_moe,
        glm4v,
        glm4v_moe,
        glm46v,
        internvl,
        internvl_moe,
        smolvlm,
        gemma3,
        gemma4,
        gemma4_large,
        llava_onevision,
        minicpmv4_6,
    )
}


@cache
def _built(name: str) -> Tiny:
    return FAMILIES[name]()


def tiny(name: str) -> Tiny:
    """A family's tiny model, a fresh copy each time, and its processor, built once."""
    built = _built(name)
    return Tiny(name, copy.deepcopy(built.model), built.processor)


def saved(name: str, folder) -> Path:
    """`folder` with the model and the processor, as `AutoModelForImageTextToText` and `AutoProcessor` load them."""
    built = _built(name)
    built.model.save_pretrained(folder)
    built.processor.save_pretrained(folder)
    return Path(folder)
