"""A headless Chromium that opens a page and keeps an eye on it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException

from making.waiting import LONGEST_S


@dataclass(frozen=True)
class Opened:
    """A page in a browser.

    Attributes:
        driver: The browser.
    """

    driver: webdriver.Chrome

    def console(self) -> list[str]:
        """Give what the page said on its console since the last time."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]  # selenium

    def outside_requests(self) -> list[str]:
        """Give the addresses that the page asked for, other than its own file and what it carries."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]  # selenium
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        own = self.driver.current_url.split("#", maxsplit=1)[0]
        return [address for address in asked if not address.startswith(("data:", own))]

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        self.driver.save_screenshot(str(path))


def _started(options: webdriver.ChromeOptions, chromedriver: str) -> webdriver.Chrome:
    """Start the browser, again where its driver's port was taken by another process, or where it came too late."""
    for _ in range(2):
        with suppress(WebDriverException):
            return webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))


@contextmanager
def opened(page: Path | str, *, size: tuple[int, int] = (1200, 1000), is_dark: bool = False) -> Iterator[Opened]:
    """Open a page, a file or an address; the test is skipped where there is no Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs Chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={size[0]},{size[1]}"):
        options.add_argument(argument)
    options.add_argument("--disable-dev-shm-usage")  # a container may have little of that memory
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = _started(options, chromedriver)
    driver.set_script_timeout(LONGEST_S)
    try:
        if is_dark:
            media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get(page if isinstance(page, str) else page.as_uri())
        yield Opened(driver)
    finally:
        driver.quit()
