// Programs that only the tests need. They are installed if that is allowed; otherwise the tests that need them say what is
// missing.
import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { isCI, plainEnv } from '../local/config.ts'
import { installPackages } from '../local/packages.ts'

export interface TestPrograms {
  packages: string[]
  isHere: () => boolean
  /** Installs what is missing if that is allowed. Resolves to whether it is here now. */
  install: () => Promise<boolean>
  /** Why the tests that need it are skipped; false if they run. In CI they always run. */
  without: string | false
}

/** @param what is named in the message that says why tests are skipped */
export function testPrograms(what: string, packages: string[], isHere: () => boolean): TestPrograms {
  return {
    packages,
    isHere,
    install: async () => isHere() || ((await installPackages(packages)) && isHere()),
    without: isHere() || isCI() ? false : `there is no ${what} to test with: install ${packages.join(' ')}`,
  }
}

/** The program's path, or its bare name if it is not here. Debian puts some programs where only root's PATH finds them. */
export function find(program: string) {
  return pathOf(program) ?? program
}

export function hasPrograms(...programs: string[]) {
  return programs.every(program => pathOf(program) !== undefined)
}

/** @returns undefined if it is not here */
export function pathOf(program: string) {
  const directories = [...(plainEnv().PATH ?? '').split(delimiter).filter(Boolean), '/usr/sbin']
  return directories.map(directory => join(directory, program)).find(existsSync)
}
