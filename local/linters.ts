// Debian's programs that the tests of docker/ look with.
import { existsSync } from 'node:fs'
import { installPackages } from './packages.ts'
import { find } from './topology.ts'

/** Program and package. */
export const linters = { shellcheck: 'shellcheck', 'systemd-analyze': 'systemd', 'docker-compose': 'docker-compose' }

/** Installs those that are missing, when that is allowed. Where they are not to be had, the tests say so. */
export async function installLinters() {
  const missing = Object.entries(linters).filter(([program]) => !existsSync(find(program)))
  if (missing.length) await installPackages(missing.map(([, name]) => name))
}
