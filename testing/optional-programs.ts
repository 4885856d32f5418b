// Programs that only the tests need: installed where that is allowed, else the tests that need them say what is missing.
import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { isCI, plainEnv } from '../local/config.ts'
import { installPackages } from '../local/packages.ts'

export interface TestPrograms {
  packages: string[]
  isHere: () => boolean
  /** Installs what is missing when that is allowed; whether it is here. */
  install: () => Promise<boolean>
  /** Why the tests that need it are skipped; false when they are not. In CI they never are. */
  without: string | false
}

/** @param what as in "no … to test with" */
export function testPrograms(what: string, packages: string[], isHere: () => boolean): TestPrograms {
  return {
    packages,
    isHere,
    install: async () => isHere() || ((await installPackages(packages)) && isHere()),
    without: isHere() || isCI() ? false : `no ${what} to test with: install ${packages.join(' ')}`,
  }
}

/** The program's path, or its bare name when it is not here. Debian puts some where only root's PATH leads. */
export function find(program: string) {
  return pathOf(program) ?? program
}

export function hasPrograms(...programs: string[]) {
  return programs.every(program => pathOf(program) !== undefined)
}

/** @returns undefined when it is not here */
export function pathOf(program: string) {
  const directories = [...(plainEnv().PATH ?? '').split(delimiter).filter(Boolean), '/usr/sbin']
  return directories.map(directory => join(directory, program)).find(existsSync)
}
