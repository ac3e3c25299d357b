"""Make app.png: the page with a finished run, a pirate asked three everyday questions.

python docs/images/make_app_screenshot.py [results/smollm2-135m-instruct]

Needs the extras app and dev, and a Chromium. Nothing is set but the system prompt, the first of
the pirate's; seed, cap and sampling are those that the page starts with.
"""

import shutil
import sys
from contextlib import closing
from pathlib import Path

import yaml
from playwright.sync_api import sync_playwright

from axiskit.app import build_page, launch
from axiskit.runs import load_run, load_run_model, newest_run

ROOT = Path(__file__).parents[2]
QUESTIONS = (
    "How should I save money?",
    "What should I eat for breakfast?",
    "Can you help me plan my week?",
)
TIMEOUT = 300_000  # milliseconds for an answer on a slow machine

run = load_run(sys.argv[1] if len(sys.argv) > 1 else newest_run(ROOT / "results"))
role = yaml.safe_load((ROOT / "resources" / "roles" / "pirate.yaml").read_text(encoding="utf-8"))
with (
    closing(build_page(run, *load_run_model(run))) as page,
    sync_playwright() as playwright,
    playwright.chromium.launch(executable_path=shutil.which("chromium")) as browser,
):
    tab = browser.new_page(viewport={"width": 1300, "height": 900})
    tab.goto(launch(page))
    tab.get_by_label("System prompt").fill(role["instructions"][0])
    for turn, question in enumerate(QUESTIONS, start=1):
        tab.locator("#message textarea").fill(question)
        tab.get_by_role("button", name="Send").click()
        tab.get_by_text(f"Turn {turn}: unsteered").wait_for(timeout=TIMEOUT)
        print(tab.locator("#measured").inner_text())
    points = f"document.querySelectorAll('#chart .points path').length == {2 * len(QUESTIONS)}"
    tab.wait_for_function(points)
    for side in ("unsteered", "capped"):
        print(side, *tab.locator(f"#{side}-side [data-testid=bot]").all_inner_texts(), sep="\n  ")
    tab.screenshot(path=Path(__file__).with_name("app.png"))
