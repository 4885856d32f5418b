import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { repository } from './repository.ts'

/** The version of this software, from package.json. */
export const version = readVersion()

function readVersion() {
  const file = readFileSync(join(repository, 'package.json'), 'utf8')
  return (JSON.parse(file) as { version: string }).version
}
