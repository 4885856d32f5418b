import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { built, repository } from '../lib/repository.ts'

/**
 * Replaces each test file in the arguments of `npm test` by its compiled form, and each folder by those of the test files in it.
 * tap itself would run none of a folder.
 */
export async function compiledTests(args: string[]) {
  const expanded = args.map(async arg => {
    const isFolder = await stat(join(repository, arg)).then(
      found => found.isDirectory(),
      () => false,
    )
    if (!isFolder) return [isTest(arg) ? built(arg) : arg]
    const names = await readdir(join(repository, arg), { recursive: true })
    return names
      .filter(isTest)
      .sort()
      .map(name => built(join(arg, name)))
  })
  return (await Promise.all(expanded)).flat()
}

function isTest(name: string) {
  return /\.test\.tsx?$/.test(name)
}
