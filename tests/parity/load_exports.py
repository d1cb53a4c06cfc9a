"""What Hugging Face transformers makes of directories that we wrote. Runs in an environment with torch.

load_exports.py FOLDER        FOLDER/logits.npz of the directories in FOLDER, and FOLDER/ids.json of their tokenizers
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from parity_cases import sequences

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "wörld 🙂"}]


def logits(folder: Path) -> np.ndarray:
    """Of the longest sequence: `[tokens, vocabulary]`."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(found.values()), found
    with torch.no_grad():
        return model(input_ids=torch.tensor([sequences()[0]]), use_cache=False).logits[0].numpy()


def ids(folder: Path) -> list[int]:
    """Of a conversation, up to where the assistant begins to speak."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)["input_ids"]


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/config.json"))
    np.savez(Path(sys.argv[1]) / "logits.npz", **{folder.name: logits(folder) for folder in folders})
    spoken = {folder.name: ids(folder) for folder in folders if (folder / "tokenizer.json").is_file()}
    (Path(sys.argv[1]) / "ids.json").write_text(json.dumps(spoken))
