import numpy as np
import pytest

from jca.affwild2 import load_affwild2, read_annotation


@pytest.fixture
def root(tmp_path):
    """The release's folders with empty media: listing reads none."""
    annotations = {"Train_Set": ["1-30-640x360", "video10_1_left", "video10_1_right"], "Validation_Set": ["7"]}
    for folder, names in annotations.items():
        for name in names:
            path = tmp_path / "VA_Estimation_Challenge" / folder / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("valence,arousal\n0.1,-0.2\n-5,-5\n0.5,1\n")
    for batch, media in {"batch1": ["1-30-640x360.mp4", "7.avi"], "batch2": ["video10_1.mp4"]}.items():
        (tmp_path / batch).mkdir()
        for name in media:
            (tmp_path / batch / name).touch()
    return tmp_path


def test_a_row_for_each_annotation(root):
    dataset = load_affwild2(root, "train")
    assert dataset["video_id"] == ["1-30-640x360", "video10_1_left", "video10_1_right"]
    # both subjects of a video share its media and have crops of their own
    assert [row["media_path"] for row in dataset][1:] == [str(root / "batch2/video10_1.mp4")] * 2
    assert dataset[2]["crops_dir"] == str(root / "cropped_aligned/video10_1_right")
    np.testing.assert_allclose(dataset[0]["labels"], [[0.1, -0.2], [-5, -5], [0.5, 1]], atol=1e-6)
    assert load_affwild2(root, "validation")["video_id"] == ["7"]


@pytest.mark.parametrize(
    "text", ["valence,arousal\r\n0.1,0.2\r\n-5.0,-5\r\n\r\n", "\ufeffvalence, arousal\n0.1, 0.2\n-5,-5.00"]
)
def test_variants_of_annotations(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    np.testing.assert_allclose(read_annotation(tmp_path / "a.txt"), [[0.1, 0.2], [-5, -5]], atol=1e-6)


def test_what_is_wrong_is_named(root):
    with pytest.raises(ValueError, match="split='test' is not known. Choose one of train, validation"):
        load_affwild2(root, "test")
    with pytest.raises(FileNotFoundError, match="root must be the folder that holds VA_Estimation_Challenge/"):
        load_affwild2(root / "batch1", "train")
    bad = root / "VA_Estimation_Challenge/Validation_Set/7.txt"
    bad.write_text("valence,arousal\n0.1,0.2\n0.1;0.2\n")
    with pytest.raises(ValueError, match=r"7\.txt, line 3: '0\.1;0\.2' is not two numbers"):
        load_affwild2(root, "validation")
    (root / "batch2/video10_1.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"video10_1_left\.txt has no media file"):
        load_affwild2(root, "train")
