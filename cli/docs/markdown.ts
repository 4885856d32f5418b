/** The note below the title of each generated page. */
export function generated(from: string) {
  return `\`npm run docs\` makes this page from ${from}, and a test fails when it is stale. Do not edit it.`
}

/** A Markdown table. Columns that are empty in each row are left out. */
export function table(header: string[], rows: (string | undefined)[][]) {
  const used = header.map((_, column) => column).filter(column => column === 0 || rows.some(row => row[column]))
  const line = (cells: (string | undefined)[]) => `| ${used.map(column => cell(cells[column] ?? '')).join(' | ')} |`
  return [line(header), `|${used.map(() => '---|').join('')}`, ...rows.map(line)].join('\n')
}

function cell(text: string) {
  return text.replaceAll('|', '\\|').replaceAll(/\s*\n\s*/g, ' ')
}

export function code(text: string) {
  return `\`${text}\``
}

/** A block of code. A value that is not text is written as JSON. */
export function block(language: string, value: unknown) {
  return `\`\`\`${language}\n${typeof value === 'string' ? value.trimEnd() : json(value)}\n\`\`\``
}

/** JSON in which each value that fits on a line stays on one. */
function json(value: unknown, indent = ''): string {
  const line = JSON.stringify(value, null, 1).replaceAll(/\n */g, ' ')
  if (typeof value !== 'object' || value === null || indent.length + line.length <= 110) return line
  const inner = `${indent}  `
  const parts = Array.isArray(value)
    ? value.map(item => json(item, inner))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${json(item, inner)}`)
  const [open, close] = Array.isArray(value) ? '[]' : '{}'
  return `${open}\n${parts.map(part => inner + part).join(',\n')}\n${indent}${close}`
}

/** The anchor that GitHub gives to a heading. */
export function anchor(heading: string) {
  return heading
    .toLowerCase()
    .replaceAll(/[^\w -]/g, '')
    .replaceAll(' ', '-')
}

/**
 * Joins parts with a blank line between them. Parts that are empty or undefined are left out. Long lines of prose are wrapped.
 */
export function page(...parts: (string | undefined)[]) {
  let isCode = false
  const lines = parts
    .filter(Boolean)
    .join('\n\n')
    .split('\n')
    .flatMap(line => {
      if (line.startsWith('```')) isCode = !isCode
      return isCode || /^[|#]/.test(line) ? [line] : wrap(line)
    })
  return `${lines.join('\n')}\n`
}

const WIDTH = 130
/** Text that would be a list, a heading, a quote or a table at the beginning of a line. */
const MARK = /^([-+*#>|]|\d+[.)])/

function wrap(text: string) {
  const lines = ['']
  for (const word of text.split(' ')) {
    const line = lines.at(-1)!
    if (line !== '' && line.length + 1 + word.length > WIDTH && !MARK.test(word)) lines.push(word)
    else lines[lines.length - 1] = line === '' ? word : `${line} ${word}`
  }
  return lines
}
