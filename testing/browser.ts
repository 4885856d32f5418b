// Debian's Chromium for the tests of the ops page, and for its screenshots.
import { chromium, type Browser } from 'playwright-core'
import { unmovedEnv } from '../local/config.ts'
import { pathOf, testPrograms } from './optional-programs.ts'

export const debianChromium = testPrograms('browser', ['chromium', 'fonts-dejavu-core'], () => findChromium() !== undefined)

export function launchBrowser(): Promise<Browser> {
  const executablePath = findChromium()
  if (executablePath === undefined) throw new Error(`there is no Chromium here; install ${debianChromium.packages.join(' ')}`)
  return chromium.launch({
    executablePath,
    // With the real clock even if the run's clock is moved, because Chromium loads nothing under faketime. The server gives the page its times.
    env: unmovedEnv(),
    // Its sandbox does not start as root; it is shown our own page alone.
    chromiumSandbox: process.getuid?.() !== 0,
  })
}

function findChromium() {
  return ['chromium', 'chromium-browser', 'google-chrome'].map(pathOf).find(path => path !== undefined)
}
