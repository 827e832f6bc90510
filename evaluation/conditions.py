"""The conditions under which policies are measured: what points at the target. Light, for processes that hold no model."""

from pixel160k.format.prompts import PIXEL_MASK, PROMPT_KINDS

WRONG = "wrong_"
"""Before a condition's name: the same, but of another object."""
PROMPTS = ("none", *PROMPT_KINDS, PIXEL_MASK, *(f"{WRONG}{kind}" for kind in (*PROMPT_KINDS, PIXEL_MASK)))
"""What can be shown of a recorded episode and in closed loop."""
FOLLOWED_POINT, FOLLOWED_TEXT = "followed_point", "followed_text"
"""In closed loop: p_t that SAM 2 makes of a click, or of what Grounding DINO finds, and follows."""
