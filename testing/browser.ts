// Runs Debian's Chromium for the tests and the screenshots of the ops page.
import { chromium, type Browser } from 'playwright-core'
import { unmovedEnv } from '../local/config.ts'
import { pathOf, testPrograms } from './optional-programs.ts'

export const debianChromium = testPrograms('browser', ['chromium', 'fonts-dejavu-core'], () => findChromium() !== undefined)

export function launchBrowser(): Promise<Browser> {
  const executablePath = findChromium()
  if (executablePath === undefined) throw new Error(`Chromium is not installed; install ${debianChromium.packages.join(' ')}`)
  return chromium.launch({
    executablePath,
    // Chromium uses the real clock even if the run's clock is moved, because it loads nothing under faketime. The server sends
    // the times to the page.
    env: unmovedEnv(),
    // Its sandbox does not start as root. It opens only our own page.
    chromiumSandbox: process.getuid?.() !== 0,
  })
}

function findChromium() {
  return ['chromium', 'chromium-browser', 'google-chrome'].map(pathOf).find(path => path !== undefined)
}
