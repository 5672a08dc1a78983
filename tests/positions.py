"""The rules of positions, written out with loops."""


def slow_positions(layout, rule="released"):
    """Positions (time, height, width) of each token of a prompt, and of the token after it.

    Args:
        layout: a prompt in order: a number of text tokens, or a medium (cells, height, width, positions between two cells)
            with height and width in tokens.
    """
    found, start = [], 0
    for part in layout:
        if isinstance(part, int):
            for _ in range(part):
                found.append((start, start, start))
                start += 1
            continue
        cells, height, width, step = part
        largest = 0
        for cell in range(cells):
            for row in range(height):
                for column in range(width):
                    found.append((start + int(cell * step), start + row, start + column))
                    largest = max(largest, *found[-1])
        start = largest + 1 if rule == "released" else start + max(height, width)
    return found, start


def layout_of(inputs, following=0, *, per_second=4):
    """A prompt as `slow_positions` takes it, with `following` tokens of text after it.

    Args:
        inputs: has `token_types`, `image_grid_thw`, `video_grid_thw` and `second_per_grid_ts`. per_second: positions a second.
    """
    kinds = [*inputs.token_types.tolist(), *[0] * following]
    images, videos = ([] if grid is None else grid.tolist() for grid in (inputs.image_grid_thw, inputs.video_grid_thw))
    seconds = [] if inputs.second_per_grid_ts is None else list(map(float, inputs.second_per_grid_ts))
    layout, place = [], 0
    while place < len(kinds):
        if kinds[place] == 0:
            size = next((i for i, kind in enumerate(kinds[place:]) if kind), len(kinds) - place)
            layout.append(size)
        else:
            cells, height, width = (images if kinds[place] == 1 else videos).pop(0)
            layout.append((cells, height // 2, width // 2, 0 if kinds[place] == 1 else per_second * seconds.pop(0)))
            size = cells * height * width // 4
        place += size
    return layout
