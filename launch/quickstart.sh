#!/usr/bin/env bash
# From nothing to a report with pictures: draws a catalogue, trains on it, evaluates and ranks.
#   make quickstart
# A second run reuses what the first one made; remove the folder quickstart/ to start over.
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

# Garments with known type, colour, pattern and cut, and captions that name them: no catalogue of yours is needed.
show fbjax draw --out quickstart/drawn --products 6000 --seed 1

# Their text and pictures as records that training reads in any order.
show fbjax prepare --config configs/quickstart.py

# Texts and pictures as vectors: words and word pairs, and features of a small network. An interrupted run resumes.
show fbjax train --config configs/quickstart.py --workdir $run

# Products that training has not seen: one right answer among 101 of the same kind.
if [ -f $run/evaluation.json ]; then
  say "evaluated already: $run/evaluation.json"
else
  show fbjax evaluate --workdir $run --queries 500 --out quickstart/metrics.json
fi

# Images for a text, and texts for an image, within a category.
show fbjax rank --workdir $run --text "red dress with mint zigzags" --category dress --top 5 --html quickstart/text.html
show fbjax rank --workdir $run --image quickstart/drawn/examples/1.jpg --category dress --top 5 --html quickstart/image.html

show fbjax report --workdir $run --out quickstart/report.html

# All products in a search index: vectors and words together.
show fbjax index --workdir $run --index quickstart/index
show fbjax search --index quickstart/index --text "red dress with mint zigzags" --top 5

say "done. Open quickstart/report.html in a browser; docs/guides/your-catalogue.md goes on with a table of your own."
say "A search page over these products: .venv/bin/fbjax serve --index quickstart/index"
