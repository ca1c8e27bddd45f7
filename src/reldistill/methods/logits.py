"""The terms on what comes out of two networks: class scores, and the vectors that they are made of."""

from __future__ import annotations

from reldistill.losses.cc import CC
from reldistill.losses.dist import DIST
from reldistill.losses.dkd import DKD
from reldistill.losses.kd import KD
from reldistill.losses.logit_std import LogitStd
from reldistill.losses.pkt import PKT
from reldistill.losses.rkd import RKD
from reldistill.losses.vrm import VRM
from reldistill.methods.plan import Plan
from reldistill.step.curriculum import WarmUp
from reldistill.step.term import Term


def kd(plan: Plan) -> list[Term]:
    """One term on the class scores."""
    return [plan.term("kd", plan.loss("kd", KD), "logits", "logits", 1.0)]


def dkd(plan: Plan) -> list[Term]:
    """One term on the class scores, warmed up as in the paper."""
    term = plan.term("dkd", plan.loss("dkd", DKD), "logits", "logits", {"target": 1.0, "nontarget": 8.0})
    term.curriculum = WarmUp(over=20 / 240)
    return [term]


def logit_std(plan: Plan) -> list[Term]:
    """One term on the class scores."""
    return [plan.term("logit_std", plan.loss("logit_std", LogitStd), "logits", "logits", 9.0)]


def dist(plan: Plan) -> list[Term]:
    """One term on the class scores."""
    return [plan.term("dist", plan.loss("dist", DIST), "logits", "logits", {"inter": 2.0, "intra": 2.0})]


def vrm(plan: Plan) -> list[Term]:
    """One term on the class scores of two views; the control without relations has no weight."""
    # so that the gradient of each is about that of kd at its default weight
    weights = {"sample": 25.0, "class": 25.0, "instance": 0.0}
    return [plan.term("vrm", plan.loss("vrm", VRM), "logits", "logits", weights)]


def rkd(plan: Plan) -> list[Term]:
    """One term on the pooled vectors."""
    return [plan.term("rkd", plan.loss("rkd", RKD), "pooled", "pooled", {"distance": 25.0, "angle": 50.0})]


def cc(plan: Plan) -> list[Term]:
    """One term on the pooled vectors, beside the class scores."""
    return [*kd(plan), plan.term("cc", plan.loss("cc", CC), "pooled", "pooled", 100.0)]


def pkt(plan: Plan) -> list[Term]:
    """One term on the pooled vectors."""
    return [plan.term("pkt", plan.loss("pkt", PKT), "pooled", "pooled", 30000.0)]
