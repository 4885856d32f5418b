// An ESLint rule that refuses an import which leads back to the file that it is in. Type imports count: eslint-plugin-import-x/no-cycle
// leaves them out, and files that need each other's types cannot be read or moved one without the other either.
import { readFileSync, statSync } from 'node:fs'
import { dirname, relative, resolve } from 'node:path'
import ts from 'typescript'

/** What each file imports, as long as it does not change: an editor keeps this process. */
const known = new Map()

/** The files of this repository that a file imports. Imports here are relative and name the file with its extension. */
function importsOf(file) {
  const modified = statSync(file, { throwIfNoEntry: false })?.mtimeMs
  if (modified === undefined) return []
  let entry = known.get(file)
  if (entry?.modified !== modified) {
    const { importedFiles } = ts.preProcessFile(readFileSync(file, 'utf8'), true)
    const files = importedFiles.filter(({ fileName }) => fileName.startsWith('.')).map(it => resolve(dirname(file), it.fileName))
    entry = { modified, files }
    known.set(file, entry)
  }
  return entry.files
}

/** The shortest way from one file to another along imports; undefined when there is none. */
function wayBetween(from, to) {
  const ways = [[from]]
  const seen = new Set([from])
  for (const way of ways) {
    if (way.at(-1) === to) return way
    for (const next of importsOf(way.at(-1))) {
      if (!seen.has(next)) ways.push([...way, next])
      seen.add(next)
    }
  }
  return undefined
}

export default {
  meta: { type: 'problem', schema: [], messages: { cycle: 'This import leads back to its own file: {{way}}.' } },
  create(context) {
    const { filename, cwd } = context
    const check = ({ source }) => {
      if (typeof source?.value !== 'string' || !source.value.startsWith('.')) return
      const way = wayBetween(resolve(dirname(filename), source.value), filename)
      if (way === undefined) return
      context.report({ node: source, messageId: 'cycle', data: { way: way.map(file => relative(cwd, file)).join(' → ') } })
    }
    return {
      ImportDeclaration: check,
      ExportNamedDeclaration: check,
      ExportAllDeclaration: check,
      ImportExpression: check,
      TSImportType: check,
    }
  },
}
