#!/usr/bin/env bash
# A world like the shipped one from nothing, in stages: `make world`, about two and a half hours of two quiet cores.
set -euo pipefail

env=BabyAI-GoToLocalS8N4-v0
starflow-world collect --env $env --out data/train --episodes 10000 --seed 1 --max-steps 64
starflow-world collect --env $env --out data/valid --episodes 200 --seed 2 --max-steps 64
starflow-world collect --env $env --out data/eval --episodes 120 --seed 3 --max-steps 80 --no-end

recipe=configs/babyai.yaml train=data/train valid=data/valid
source configs/stages.sh

stage motion "train.parts=[flow.motion, flow.carry, action]" "train.lengths=[24]" \
  train.start_rate=0.5 train.end_rate=0.1 train.action_dropout=0.03 train.starts=1 train.learning_rate=0.004 \
  train.steps=1500 train.site_learning_rate=0.015
stage carried "train.parts=[flow.motion, flow.carry, action]" "train.lengths=[24]" \
  train.start_rate=0.5 train.end_rate=0.1 train.action_dropout=0.03 train.starts=1 train.learning_rate=0.004 \
  train.steps=2100 train.site_learning_rate=0.01
stage settled "train.parts=[flow.motion, flow.carry, action]" "train.lengths=[24]" \
  train.start_rate=0.5 train.end_rate=0.1 train.action_dropout=0.03 train.starts=1 train.learning_rate=0.004 \
  train.steps=1300 train.site_learning_rate=0.01 train.motion_beta=0.5
stage settled-further "train.parts=[flow.motion, flow.carry, action]" "train.lengths=[24]" \
  train.start_rate=0.5 train.end_rate=0.1 train.action_dropout=0.03 train.starts=1 train.learning_rate=0.003 \
  train.steps=1800 train.site_learning_rate=0.006 train.motion_beta=0.5 train.seed=21
stage settled-long "train.parts=[flow.motion, flow.carry, action]" "train.lengths=[24]" \
  train.start_rate=0.5 train.end_rate=0.1 train.action_dropout=0.03 train.starts=1 train.learning_rate=0.003 \
  train.steps=9000 train.site_learning_rate=0.008 train.motion_beta=0.5 train.seed=31
stage history "train.parts=[flow.deep, flow.denoiser, flow.motion.tell, flow.shallow, text]" train.steps=1500 \
  train.outcome_weight=0 train.site_learning_rate=0.01
stage first-frames "train.parts=[flow.shallow]" train.steps=450 train.frames=160 "train.lengths=[1]" train.start_rate=1 \
  train.end_rate=0 train.starts=1 train.start_weight=1 train.outcome_weight=0 train.learning_rate=0.004
stage quiet "train.parts=[flow.deep, flow.motion.tell]" train.steps=700 train.starts=8 train.start_weight=0.1 train.outcome_weight=0 \
  train.learning_rate=0.002 train.site_learning_rate=0.003 train.seed=41
stage events "train.parts=[outcome]" "train.lengths=[1]" train.start_rate=0 train.starts=1 train.start_weight=0 \
  train.outcome_weight=1 train.text_dropout=0 train.steps=1500 train.frames=256 train.end_rate=0.5 \
  train.site_learning_rate=0.008
stage seldom-events "train.parts=[outcome]" "train.lengths=[1]" train.start_rate=0 train.starts=1 train.start_weight=0 \
  train.outcome_weight=1 train.text_dropout=0 train.steps=2100 train.frames=384 train.end_rate=0.1 \
  train.site_learning_rate=0.007
stage all-events "train.parts=[outcome]" "train.lengths=[1]" train.start_rate=0 train.starts=1 train.start_weight=0 \
  train.outcome_weight=1 train.text_dropout=0 train.steps=300 train.frames=512 train.end_rate=0.02 \
  train.site_learning_rate=0.002
stage last-events "train.parts=[outcome]" "train.lengths=[1]" train.start_rate=0 train.starts=1 train.start_weight=0 \
  train.outcome_weight=1 train.text_dropout=0 train.steps=2000 train.frames=384 train.end_rate=0.08 \
  train.site_learning_rate=0.006 train.seed=5
stage text-starts "train.parts=[start.]" train.steps=3600 train.starts=128 train.learning_rate=0.005
stage text-starts-settled "train.parts=[start.]" train.steps=3600 train.starts=128 train.learning_rate=0.004 train.seed=11

starflow-world evaluate runs/text-starts-settled --data data/eval --outcomes data/valid --card
