"""Quick convergence experiment of the mini (not part of the product)."""
import dataclasses, sys, time, itertools, torch, json
from pathlib import Path
from harness.options import RunOptions
from object_detection import data, schedule
from object_detection.config import MINI
from object_detection.model import MaskRCNN
from object_detection.training_losses import TrainingLosses
from object_detection.evaluate import evaluate
changes = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
threads = int(sys.argv[3]) if len(sys.argv) > 3 else 2
opt = changes.pop("optimizer", "sgd")
seed = int(sys.argv[1])
config = dataclasses.replace(MINI, **changes)
torch.set_num_threads(threads)
torch.manual_seed(seed)
options = RunOptions(data_dir=Path("/tmp/w/data"), results_dir=Path("/tmp/w/x"))
train_images, eval_images = data.load(config, options)
model = MaskRCNN(config); losses = TrainingLosses(model, config)
if opt == "sgd":
    biases = [w for n, w in model.named_parameters() if n.endswith("bias")]
    others = [w for n, w in model.named_parameters() if not n.endswith("bias")]
    optimizer = torch.optim.SGD([{"params": others, "weight_decay": config.weight_decay}, {"params": biases, "weight_decay": 0}], lr=0.1, momentum=config.momentum, fused=True)
else:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay, fused=True)
spe = data.num_steps(config)
evals = schedule.evaluation_steps(config, spe)
batches = data.train_batches(train_images, config, seed, itertools.count(1), 0, 0)
start = time.time(); total = torch.zeros(5); spent = 0
for step in range(schedule.last_step(config, spe)):
    batch = next(batches)
    loss = losses(batch)
    optimizer.zero_grad(); loss.sum().backward()
    for g in optimizer.param_groups: g["lr"] = schedule.learning_rate(config, step)
    if config.max_gradient_norm: torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
    optimizer.step()
    total += loss.detach()
    if (step + 1) % 125 == 0:
        print(step + 1, round(time.time() - start, 1), [round(x, 3) for x in (total / 125).tolist()], flush=True); total.zero_()
    if step + 1 in evals:
        t = time.time(); q = evaluate(model, eval_images, config, torch.device("cpu"), 0)
        print("EVAL", step + 1, round(time.time() - start, 1), {k: round(q[k], 4) for k in ("box_ap", "box_ap_50", "mask_ap", "mask_ap_50")}, "eval s", round(time.time() - t, 1), flush=True)
