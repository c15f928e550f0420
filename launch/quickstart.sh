#!/usr/bin/env bash
# From nothing to a report with pictures: draws a catalogue, trains FashionBERT on it, and asks it.
#   make quickstart
# Run it again, and every part says what it finds done; remove the folder quickstart/ to start over.
set -euo pipefail
cd "$(dirname "$0")/.."
run=quickstart/garments

say() { printf '\n[%d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }
show() {
  local shown='$' word
  for word; do [[ $word == *' '* ]] && shown+=" \"$word\"" || shown+=" $word"; done
  say "$shown"
  "$@"
}

# Garments with known type, colour, pattern and cut, and captions that name them: no catalogue needs to be at hand.
show fbjax draw --out quickstart/drawn --products 6000 --seed 1

# Their text and pictures as records that training reads in any order.
show fbjax prepare --config configs/quickstart.py

# Words, patches and alignment, from random weights. Interrupted, it goes on from its last checkpoint.
show fbjax train --config configs/quickstart.py --workdir $run

# Products that training has not seen: one right answer among 101 of the same kind.
if [ -f $run/evaluation.json ]; then
  say "evaluated already: $run/evaluation.json"
else
  show fbjax evaluate --workdir $run --queries 500 --out quickstart/metrics.json
fi

# Pictures for a text, and texts for a picture; within a category, as that is what mismatched pairs have taught.
show fbjax rank --workdir $run --text "red dress with mint zigzags" --category dress --top 5 --html quickstart/text.html
show fbjax rank --workdir $run --image quickstart/drawn/examples/1.jpg --category dress --top 5 --html quickstart/image.html

show fbjax report --workdir $run --out quickstart/report.html

say "done. Open quickstart/report.html in a browser; docs/your-catalogue.md goes on with a table of your own."
