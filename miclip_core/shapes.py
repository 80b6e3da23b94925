"""The one legend of shape suffixes: `resid_BTD` is a tensor of images x tokens x residual width."""

LEGEND: dict[str, str] = {
    "B": "images of a batch",
    "T": "tokens: prefix tokens (class, registers), then patches in row-major order",
    "D": "residual width",
    "H": "attention heads",
    "X": "head width (H * X = D unless stated)",
    "N": "MLP width (neurons)",
    "U": "units: channels of a site, latents or heads",
    "K": "kept best (top-k)",
    "P": "patches",
    "R": "rows of one image in a table: one per kept position",
    "W": "width of a row: the flattened vector at one position",
    "C": "channels of a map, or classes of a classifier",
    "E": "embedding width",
    "M": "texts",
    "I": "height of a map (rows)",
    "J": "width of a map (columns)",
    "L": "layers, or tokens of a text",
    "G": "groups of units",
    "S": "samples at random, or templates of a text",
}
