import { readFileSync } from 'node:fs'

/** The version of this software, from package.json. */
export const version = readVersion()

function readVersion() {
  const file = readFileSync(new URL('../package.json', import.meta.url), 'utf8')
  return (JSON.parse(file) as { version: string }).version
}
