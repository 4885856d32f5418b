import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** The directory of this clone or image: the next one up that has a package.json. This file runs from build/. */
export const repository = above(import.meta.dirname)

function above(directory: string): string {
  return existsSync(join(directory, 'package.json')) ? directory : above(dirname(directory))
}

/** The compiled form of a program, such as server/main.ts, in this clone or in another one. `npm run build` makes it. */
export function built(script: string, root = repository) {
  return join(root, 'build', script.replace(/\.tsx?$/, '.js'))
}

/** The arguments with which node runs a program. Stack traces then name the lines of its source. */
export function nodeArgs(script: string, root = repository) {
  return ['--enable-source-maps', built(script, root)]
}
