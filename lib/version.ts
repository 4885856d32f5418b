import { readFileSync } from 'node:fs'

/** The version of this software, as package.json has it. */
export const version = readVersion()

function readVersion() {
  const file = readFileSync(new URL('../package.json', import.meta.url), 'utf8')
  return (JSON.parse(file) as { version: string }).version
}
