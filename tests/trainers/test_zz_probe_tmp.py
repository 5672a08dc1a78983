import torch, itertools
from tests.trainers.reference import *
from trl_perception.trainers import *
@pytest.mark.parametrize("lr",[2e-4,5e-4,1e-3])
@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("cls", [RALTrainer,APPOTrainer])
def test_probe(rows, make_trainer,kind,lr,cls):
    trainer = build(make_trainer, rows[kind], cls, **OBJECTIVES[kind], **{**TWO_UPDATES, "learning_rate":lr})
    trainer.train()
    u=Update(trainer, rows[kind], 1)
    old,now=u.read(u.sampled_with),u.read(u.weights)
    r=[round((a-b).exp().item(),2) for o,n in zip(old,now) for a,b in zip(n.logps(.8),o.logps(.8))]
    j=[jensen_shannon(a,b).item() for o,n in zip(old,now) for a,b in zip(attention_policies(o),attention_policies(n))]
    print("XX",kind,lr,cls.__name__,r,[round(x,5) for x in j], [s.loss for s in u.micro])
