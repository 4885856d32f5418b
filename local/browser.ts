// Debian's Chromium for the tests of the ops page, and for its screenshots.
import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { chromium, type Browser } from 'playwright-core'
import { objectStoreConfig, plainEnv } from './config.ts'
import { installPackages } from './packages.ts'

const packages = ['chromium', 'fonts-dejavu-core']

/** Installs Chromium when it is missing and that is allowed; whether it is here. */
export async function installBrowser() {
  return findChromium() !== undefined || (await installPackages(packages) && findChromium() !== undefined)
}

/** Why the tests that need it are skipped; false when they are not. In CI they never are. */
export const withoutBrowser = findChromium() !== undefined || objectStoreConfig().isCI ? false
  : `no browser to test with: install ${packages.join(' ')}`

export function launchBrowser(): Promise<Browser> {
  const executablePath = findChromium()
  if (executablePath === undefined) throw new Error(`there is no Chromium here; install ${packages.join(' ')}`)
  return chromium.launch({
    executablePath,
    // Its sandbox does not start as root; it is shown our own page alone.
    chromiumSandbox: process.getuid?.() !== 0,
  })
}

function findChromium() {
  const names = ['chromium', 'chromium-browser', 'google-chrome']
  return (plainEnv().PATH ?? '').split(delimiter).flatMap(directory => names.map(name => join(directory, name))).find(existsSync)
}
