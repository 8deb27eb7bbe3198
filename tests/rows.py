"""Rows as the pipeline gives them."""


def row(frame, face=0, valence=0.0, arousal=0.0, fps=30, **changes):
    """Of one frame and face; the box goes a px to the right with each frame."""
    return {
        "time": round(frame / fps, 6),
        "frame": frame,
        "face": face,
        "valence": valence,
        "arousal": arousal,
        "box": None if face is None else [10.0 + frame, 20.0, 110.5 + frame, 140.25],
        "face_detected": face is not None,
        "audio_present": True,
        "face_quality": None if face is None else 0.75,
    } | changes
