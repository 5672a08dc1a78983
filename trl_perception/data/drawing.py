"""Pixels of the synthetic clips: named colors, filled shapes, moving distractors, noise. Arrays are (H,W,3) uint8."""

import numpy as np

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 70, 220),
    "yellow": (235, 215, 50),
    "purple": (140, 50, 190),
    "orange": (245, 140, 30),
    "cyan": (50, 205, 215),
    "pink": (245, 140, 190),
}
SHAPES = ("square", "circle", "triangle", "cross")
WHITE = (250, 250, 250)


def canvas(height: int, width: int, color: tuple[int, int, int]) -> np.ndarray:
    """Return a frame (H,W,3) uint8 of one color."""
    return np.full((height, width, 3), color, dtype=np.uint8)


def dim_gray(rng: np.random.Generator) -> tuple[int, int, int]:
    """Return a gray dark enough to differ from every named color and from a white flash."""
    level = int(rng.integers(40, 91))
    return (level, level, level)


def shape_mask(shape: str, height: int, width: int, center: tuple[int, int], radius: int) -> np.ndarray:
    """Return a mask (H,W) bool of a filled shape; center is (row, column), radius in pixels."""
    rows, columns = np.mgrid[:height, :width]
    dy, dx = rows - center[0], columns - center[1]
    inside = (np.abs(dy) <= radius) & (np.abs(dx) <= radius)
    if shape == "square":
        return inside
    if shape == "circle":
        return dy**2 + dx**2 <= radius**2
    if shape == "triangle":
        return inside & (2 * np.abs(dx) <= dy + radius)
    if shape == "cross":
        return inside & ((3 * np.abs(dy) <= radius) | (3 * np.abs(dx) <= radius))
    raise ValueError(f"shape is {shape!r}; draw one of {', '.join(SHAPES)}")


def paint(frame: np.ndarray, shape: str, color: str, center: tuple[int, int], radius: int) -> list[int]:
    """Draw a filled shape into `frame` and return its box [x0, y0, x1, y1] in pixels, x1 and y1 exclusive."""
    height, width = frame.shape[:2]
    mask = shape_mask(shape, height, width, center, radius)
    frame[mask] = COLORS[color]
    rows, columns = np.nonzero(mask)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def scatter_distractors(frames: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Draw `count` small gray shapes into frames (F,H,W,3); each drifts across the clip and bounces off the edges."""
    total, height, width = frames.shape[:3]
    radius = max(1, min(height, width) // 16)
    room = np.array([height - 2 * radius - 1, width - 2 * radius - 1])
    for _ in range(count):
        start, velocity = rng.uniform(0, room), rng.uniform(-0.12, 0.12, size=2) * room
        shape, level = SHAPES[rng.integers(len(SHAPES))], int(rng.integers(110, 171))
        for index in range(total):
            phase = (start + index * velocity) % (2 * room)
            y, x = (np.minimum(phase, 2 * room - phase) + radius).astype(int)
            frames[index][shape_mask(shape, height, width, (y, x), radius)] = level


def add_tint(frames: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """Shift red, green and blue of frames (...,3) by one random number in [-most, most] each, in levels of 255."""
    if most == 0:
        return frames
    return np.clip(np.rint(frames + rng.uniform(-most, most, size=3)), 0, 255).astype(np.uint8)


def add_noise(frames: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian pixel noise of standard deviation `sigma`, in levels of 255, to frames."""
    if sigma == 0:
        return frames
    noisy = frames + rng.normal(0.0, sigma, size=frames.shape).astype(np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
