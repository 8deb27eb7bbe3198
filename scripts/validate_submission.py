"""What is wrong with a submission to the valence-arousal challenge of ABAW, a line for each problem with its line number."""

import argparse
import sys

from jca.affwild2 import load_affwild2
from jca.submission import last_frames, validate_submission


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="text file `image_location,valence,arousal`, a row for each frame of each video")
    parser.add_argument("--sample", help="the organisers' sample file, whose rows and order the submission must have")
    parser.add_argument("--root", help="folder of the release, whose test videos and lengths the submission must have")
    arguments = parser.parse_args()
    lasts, num_frames = last_frames(arguments.file), None
    if arguments.root:
        num_frames = {}
        for row in load_affwild2(arguments.root, "test").select_columns(["video_id", "num_frames"]):
            video, count = row["video_id"], int(row["num_frames"])
            last = lasts.get(video, 0)
            if last and (abs(last - count) == 1 or not count):  # a header's count may be off by one, or missing
                print(f"remark: {video} ends with frame {last}, the header of its media file says {count} frames")
                count = last
            num_frames[video] = max(count, 1)
    problems = validate_submission(arguments.file, arguments.sample, num_frames)
    if problems:
        print("\n".join(problems))
        sys.exit(1)
    print(f"{arguments.file}: {len(lasts)} videos, {sum(lasts.values())} rows, no problem")


if __name__ == "__main__":
    main()
