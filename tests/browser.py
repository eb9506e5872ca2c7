"""Opens pages in a real Chromium, if there is one, for the tests that look at what this project writes."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browse(page: Path, script: str, *, width: int = 1280, dark: bool = False) -> Any:
    """Opens a page in Chromium, runs a script in it and returns what the script leaves in the title."""
    probe = page.with_name(f"probe_{page.name}")
    # The policy of the page allows scripts in it and nothing from elsewhere.
    errors = "<script>const errors = []; addEventListener('error', (e) => errors.push(e.message));"
    errors += "addEventListener('securitypolicyviolation', (e) => errors.push(e.blockedURI));</script>"
    end = "<script>addEventListener('load', async () => { let found = null;"
    end += f"try {{ found = await (async () => {{ {script} }})(); }} catch (error) {{ errors.push(error.stack); }}"
    end += "const element = document.createElement('output'); element.id = 'found';"
    end += "element.textContent = JSON.stringify({ found, errors }); document.body.append(element); });</script>"
    text = page.read_text(encoding="utf-8").replace("</title>", f"</title>{errors}", 1)
    probe.write_text(text.replace("</body>", f"{end}</body>"), encoding="utf-8")
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command += ["--blink-settings=preferredColorScheme=0"] * dark
    command += [
        "--disable-dev-shm-usage",
        f"--user-data-dir={page.parent / 'profile'}",
        "--virtual-time-budget=60000",
        "--enable-logging=stderr",  # what the page writes to the console
    ]
    done = subprocess.run(
        [*command, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=240, check=True
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    (answer,) = re.findall(r'<output id="found">(.*?)</output>', done.stdout, flags=re.DOTALL)
    answer = json.loads(unescape(answer))
    assert answer["errors"] == []
    return answer["found"]
