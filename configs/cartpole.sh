#!/usr/bin/env bash
# The CartPole world from nothing, in stages: bash configs/cartpole.sh, about 75 minutes of one core.
set -euo pipefail

env=CartPolePixels-v0
starflow-world collect --env $env --out data/cartpole --policy balance --episodes 2000 --seed 1 --max-steps 64
starflow-world collect --env $env --out data/cartpole-valid --policy balance --episodes 100 --seed 2 --max-steps 64

recipe=configs/cartpole.yaml train=data/cartpole valid=data/cartpole-valid
source configs/stages.sh

stage cartpole-motion "train.parts=[flow.motion, action]" "train.lengths=[24]" train.start_rate=0.3 train.starts=1 \
  train.steps=3000 train.learning_rate=0.004 train.site_learning_rate=0.015
stage cartpole-settled "train.parts=[flow.motion, action]" "train.lengths=[24]" train.start_rate=0.3 train.starts=1 \
  train.steps=1800 train.learning_rate=0.003 train.site_learning_rate=0.01
stage cartpole-history "train.parts=[flow.deep, flow.denoiser, flow.motion.tell, flow.shallow, outcome]" \
  train.steps=800 train.learning_rate=0.004 train.site_learning_rate=0.008
stage cartpole "train.parts=[flow.deep, flow.denoiser, flow.motion, flow.shallow, outcome]" \
  train.steps=1300 train.learning_rate=0.004 train.site_learning_rate=0.006
stage cartpole-settled-whole "train.parts=[flow.deep, flow.denoiser, flow.motion, flow.shallow, outcome]" \
  train.steps=2300 train.learning_rate=0.003 train.site_learning_rate=0.005 train.seed=7

starflow-world evaluate runs/cartpole-settled-whole --data data/cartpole-valid --episodes 40 --card
