"""Who finds gripper and object and names the target: foundation models, motion, a grammar; and where they come from."""
