"""The widgets in JupyterLab, in a real browser."""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "semeda"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
# JupyterLab renders an error's traceback as stderr
ERRORS = """() => [...document.querySelectorAll("[data-mime-type='application/vnd.jupyter.stderr']"),
    ...document.querySelectorAll(".jupyter-widgets-error-widget")]
    .map(e => e.textContent).filter(text => /error/i.test(text))"""
PROMPTS = "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(p => p.textContent)"
STARTED = f"() => {PROMPTS}.some(text => /\\[[*\\d]/.test(text))"
# the last cell has a new number, so all before it have run
FINISHED = f"before => (/\\[\\d+\\]/.test({PROMPTS}.at(-1)) && {PROMPTS}.at(-1) !== before) || ({ERRORS})().length > 0"
SETTINGS = {
    "notebook-extension/tracker": dict(windowingMode="none", autoStartDefaultKernel=True),
    "apputils-extension/notification": dict(fetchNews="false", checkForUpdates=False),
}
SLIDERS = ".jp-OutputArea-output .widget-vbox .widget-hslider"


@pytest.fixture(scope="module")
def chromium():
    "A headless Chromium, or skip"
    reason = "Playwright is not installed: pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    with playwright.sync_playwright() as p:
        try:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except playwright.Error as e:
            pytest.skip(f"{CHROMIUM} does not start: {str(e).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    "The address of a JupyterLab on a copy of the notebook with the widgets"
    home, project = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("project")
    (project / "nbs").mkdir()
    for name in ("settings.ini", "nbs/playground.ipynb", "nbs/48_trainer.ipynb"):
        shutil.copy(ROOT / name, project / name)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    env |= {"JUPYTER_CONFIG_DIR": str(home), "JUPYTER_DATA_DIR": str(home / "data")}
    env |= {"JUPYTER_RUNTIME_DIR": str(home / "runtime"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    env.pop("SEMEDA_STATIC", None)
    for plugin, settings in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(settings))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={project}"]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (home / "log").read_text()[-2000:]
                time.sleep(.5)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="module")
def page(chromium, lab):
    "The notebook, all of its cells run"
    page = chromium.new_page(viewport=dict(width=1300, height=1000))
    page.problems = []
    page.on("pageerror", lambda e: page.problems.append(str(e)))
    # On a slow machine JupyterLab's widget manager misses a kernel that starts while the page loads. So a first visit
    # starts it, and later ones find it idle.
    visit(page, lab)
    wait_for_kernel(lab)
    for _ in range(3):
        visit(page, lab)
        run_all(page)
        try:
            drawn = f"() => document.querySelectorAll('{SLIDERS}').length >= 3"
            page.wait_for_function(drawn, timeout=20_000, polling=200)
            break
        except sys.modules["playwright.sync_api"].TimeoutError:
            if page.evaluate(ERRORS):
                break
    return page


def visit(page, lab):
    "Load the notebook's page and wait for the kernel"
    page.goto(f"{lab}/lab/tree/nbs/playground.ipynb?token={TOKEN}&reset", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=120_000)


def wait_for_kernel(lab, seconds=120):
    "Until the server knows a kernel that is idle and heard by a page"
    end = time.time() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{lab}/api/kernels?token={TOKEN}", timeout=60) as answer:
                kernels = json.load(answer)
        except urllib.error.HTTPError: # while the kernel starts
            kernels = []
        if any(k["execution_state"] == "idle" and k["connections"] for k in kernels):
            return
        assert time.time() < end, f"no kernel is idle after {seconds} s: {kernels}"
        time.sleep(.5)


def run_all(page):
    "Run all cells and wait for the last of them"
    before = page.evaluate(f"() => {PROMPTS}.at(-1)")
    for _ in range(4): # the menu does nothing until the kernel is there
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=120_000)
        page.click(".lm-MenuBar-item >> text=Run")
        page.click(".lm-Menu-item >> text=Run All Cells")
        try:
            page.wait_for_function(STARTED, timeout=5_000, polling=200)
            break
        except sys.modules["playwright.sync_api"].TimeoutError:
            continue
    page.wait_for_function(FINISHED, arg=before, timeout=150_000, polling=500)


def test_cells_ran_without_errors(page):
    assert page.evaluate(ERRORS) == [] and page.problems == []
    assert len(page.query_selector_all(SLIDERS)) >= 3


def explorer(page, slider):
    "The outermost widget that holds a slider of this description"
    label = page.locator(".widget-hslider", has_text=slider).first
    return label.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' jp-OutputArea-output ')][1]")


def state(box):
    "What the widget shows: the pictures' sources and the numbers"
    return [i.get_attribute("src") for i in box.locator("img").all()], box.locator("[role=status]").inner_text()


def wait_for_change(box, before, seconds=10):
    end = time.time() + seconds
    while time.time() < end:
        pictures, text = state(box)
        if pictures != before[0] and text != before[1]:
            return pictures, text
        time.sleep(.05)
    raise AssertionError(f"picture and numbers stayed the same for {seconds} s: {before[1]}")


def settled(box, still=1, seconds=10):
    "Pictures and numbers once they have stayed the same for a second"
    end, last, since = time.time() + seconds, state(box), time.time()
    while time.time() < end and time.time() - since < still:
        if (now := state(box)) != last:
            last, since = now, time.time()
        time.sleep(.05)
    return last


def test_dragging_the_trimap_slider_changes_picture_and_number(page):
    box = explorer(page, "trimap width")
    box.scroll_into_view_if_needed()
    before = state(box)
    assert len(before[0]) == 4 and "boundary mIoU" in before[1]
    slider = box.locator(".widget-hslider", has_text="trimap width")
    handle, base = slider.locator(".noUi-handle"), slider.locator(".noUi-base").bounding_box()
    area = handle.bounding_box()
    x, y = area["x"] + area["width"] / 2, area["y"] + area["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(base["x"] + base["width"] / 2, y, steps=6)
    page.mouse.up()
    wait_for_change(box, before)
    dragged = settled(box) # not a state on the way, which the key may bring back
    handle.focus()
    page.keyboard.press("ArrowLeft")
    wait_for_change(box, dragged)
    test_cells_ran_without_errors(page)


def test_what_differs_most_stays_chosen_when_the_run_changes(page):
    box = explorer(page, "opacity of the masks")
    jump = box.locator("select", has=page.locator("option", has_text="of the pixels")).last
    jump.select_option(index=2)
    chosen = jump.evaluate("e => e.selectedOptions[0].textContent").partition(":")[0]
    before = state(box)
    box.locator("select").first.select_option(index=1)
    wait_for_change(box, before)
    assert jump.evaluate("e => e.selectedOptions[0].textContent").startswith(chosen)
    assert "only 1 right" in box.inner_text()
