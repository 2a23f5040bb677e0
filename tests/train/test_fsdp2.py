"""Weights divided by FSDP2 among two processes on the CPU (gloo) give one process's gradients.

accelerate turns FSDP on for accelerators only (on the CPU it keeps plain data parallelism, whatever
its configuration says), so the division is made here as accelerate makes it: every decoder layer,
then the whole model, in place.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch, torch.distributed as dist
torch.set_num_threads(1)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from vistoken.core.objectives import StepLoss
from vistoken.models.build import build
from vistoken.models.recipe import load_recipe
from vistoken.train.distributed import run_through
from vistoken.train.groups import apply_groups
from vistoken.train.settings import StageConfig

STAGE = StageConfig.model_validate({
    "name": "s", "steps": 1,
    "groups": {"connector": {"train": "full"}, "spatial": {"train": "full"},
               "language": {"train": "full"}},
})

def prepared():
    model, _ = build(load_recipe("pico"))
    apply_groups(model, STAGE)
    return model

def loss_of(model, ids):
    def compute():
        core = model.model
        features = core.get_image_features(pixel_values=torch.ones(1, 3, 32, 32))
        states = core(
            input_ids=ids, mm_encoder_outputs={"image": features}, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(states[:, -4:]).float()
        return StepLoss(torch.nn.functional.cross_entropy(logits[0], ids[0, -4:]), 4)
    return run_through(model, model, compute).mean

dist.init_process_group("gloo")
alone = prepared()
visual = len(alone.model.get_image_features(pixel_values=torch.ones(1, 3, 32, 32)).pooler_output[0])
ids = torch.tensor([[alone.config.image_token_id] * visual + [7, 9, 11, 13, 15]])
wanted = loss_of(alone, ids)
wanted.backward()

shared = prepared()
for layer in shared.model.language_model.layers:
    fully_shard(layer)
fully_shard(shared)
assert isinstance(shared, FSDPModule)
held = sum(p.to_local().numel() for p in shared.parameters())
whole = sum(p.numel() for p in alone.parameters())
assert held <= whole * 0.6, (held, whole)
got = loss_of(shared, ids)
got.backward()
torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
expected = dict(alone.named_parameters())
compared = 0
for name, parameter in shared.named_parameters():
    if expected[name].grad is None:
        continue
    assert isinstance(parameter.grad, DTensor), name
    torch.testing.assert_close(
        parameter.grad.full_tensor(), expected[name].grad, atol=1e-6, rtol=1e-4, msg=name
    )
    compared += 1
assert compared > 20, compared
optimizer = torch.optim.AdamW([p for p in shared.parameters() if p.requires_grad])
optimizer.step()
print("compared", compared, flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_divided_weights_give_the_gradients_of_whole_ones(tmp_path) -> None:
    script = tmp_path / "shared.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("compared") == 2
