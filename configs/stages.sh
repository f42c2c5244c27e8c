# Sourced by the scripts beside it: stages of a training, each going on from the one before. A stage that is done is not
# done again; one that was interrupted goes on. Expects $recipe, $train and $valid.
before=()
stage() { # stage NAME SETTING...
  local out=runs/$1 how=("${before[@]}")
  if [ ! -e "$out/done" ]; then
    [ -e "$out/training.safetensors" ] && how=(--resume)
    starflow-world train "$recipe" --data "$train" --valid "$valid" --out "$out" "${how[@]}" "${@:2}"
    touch "$out/done"
  fi
  before=(--init "$out")
}
