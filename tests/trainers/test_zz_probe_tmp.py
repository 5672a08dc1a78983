from tests.trainers.reference import *
from trl_perception.trainers import *
from tests.trainers.test_appo_trainer import OPTIONS, CHOOSY
import os
def test_probe(rows, make_trainer):
  for path in (default_path(make_trainer), "/tmp/rand_tiny"):
   for size in (.1,.2,.3):
    for base in (CHOOSY, {**CHOOSY,"top_frames":3}, {**CHOOSY,"top_tokens":15}):
     bad={}
     for seed in range(3):
      trainer, groups = groups_of(make_trainer, rows["several"], APPOTrainer, model=shaken(path,seed,size), **base)
      plain=[trainer.token_weights(g).weights for g in groups]
      for n,o in OPTIONS.items():
        ch=sum((asked_again(trainer,g,o).weights-b).abs().max().item() for g,b in zip(groups,plain))
        if ch<1e-2: bad[n]=bad.get(n,0)+1
     print("XX",path[-12:],size,base["top_tokens"],base["top_frames"],bad)
