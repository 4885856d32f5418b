/**
 * A table in the format of RFC 4180. The first line has the column names, and null is empty. Text that a spreadsheet would take
 * for a formula gets an apostrophe in front of it, because some text comes from devices.
 */
export function csv(columns: string[], rows: object[]) {
  const lines = rows.map(row => columns.map(column => cell((row as Record<string, unknown>)[column])).join(','))
  return [columns.join(','), ...lines, ''].join('\r\n')
}

function cell(value: unknown) {
  if (value === null || value === undefined) return ''
  if (typeof value !== 'string') return quoted(JSON.stringify(value))
  return quoted(/^[=+\-@\t\r]/.test(value) ? `'${value}` : value)
}

function quoted(text: string) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}
