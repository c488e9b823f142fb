"""`python -m tests.hub`: a local Hub for a person, until Ctrl-C."""

import argparse
import os
import threading

# Read by the libraries when they are imported. The seeds are made here, so nothing is downloaded.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")


def main() -> None:
    """Start the Hub, and print how to use it."""
    from tests.hub import accounts, seeds
    from tests.hub.local import LocalHub

    parser = argparse.ArgumentParser(prog="python -m tests.hub", description="A Hub on this machine, in memory.")
    parser.add_argument("--port", type=int, default=8765, help="port to listen on; 0 takes a free one")
    parser.add_argument("--empty", action="store_true", help="add no model and no data set")
    options = parser.parse_args()
    with LocalHub(options.port) as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_HOME=$(mktemp -d)")
        print(f"export HF_TOKEN={accounts.GOOD_TOKEN}  # me, may write to me/ and {accounts.TEAM}/")
        print(f"export HF_TOKEN={accounts.READ_TOKEN}  # me, may read only")
        print(f"export HF_TOKEN={accounts.FINE_TOKEN}  # me, fine-grained: may write to me/")
        print(f"export HF_TOKEN={accounts.NARROW_TOKEN}  # me, fine-grained: may write to me/allowed")
        print(f"export HF_TOKEN={accounts.OTHER_TOKEN}  # someone, may write to someone/")
        if not options.empty:
            seeds.add_model(hub)
            seeds.add_data(hub)
            print(f"Model {seeds.MODEL}, data set {seeds.DATA} (columns sentence, label). Try, in another shell:")
            print(f"  python -c \"from datasets import load_dataset; print(load_dataset('{seeds.DATA}'))\"")
            print("  hf-compress push FOLDER me/small, then: hf-compress verify me/small")
        print("Ctrl-C stops the Hub and forgets everything.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
