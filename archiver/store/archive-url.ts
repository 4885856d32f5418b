/** Says what is wrong with the URL of a store, as the text after a setting's name. Undefined if nothing is wrong. */
export function archiveUrlProblem(value: string) {
  if (value.startsWith('file:///') && value.length > 'file:///'.length) return undefined
  if (/^s3:\/\/[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](\/.*)?$/.test(value)) return undefined
  return `expected file:///absolute/path or s3://bucket/prefix, got ${value}`
}
