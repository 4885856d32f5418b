/** What each generated page says of itself, below its title. */
export function generated(from: string) {
  return `\`npm run docs\` makes this page from ${from}, and a test fails when it is stale. Do not edit it.`
}

/** A table of Markdown. Columns that are empty in each row are left out. */
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

/** A block of code, of JSON when it is not text. */
export function block(language: string, value: unknown) {
  return `\`\`\`${language}\n${typeof value === 'string' ? value.trimEnd() : json(value)}\n\`\`\``
}

/** What fits on a line stays on it. */
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

/** Parts with a blank line between them; those that are empty or undefined are left out. Long lines of prose are wrapped. */
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
/** What would be a list, a heading, a quote or a table at the begin of a line. */
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
