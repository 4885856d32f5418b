/** Text that PostgreSQL can store: it has neither NUL nor a lone surrogate. */
// eslint-disable-next-line no-control-regex -- it is what PostgreSQL refuses
export const STORABLE = /^[^\u0000\p{Cs}]*$/u

/**
 * Whether the text has at most `max` characters (code points). They are counted only if the text can be short enough, because
 * 1 MiB of text would become an array of a million strings.
 */
export function hasAtMost(text: string, max: number) {
  return text.length <= max || (text.length <= 2 * max && [...text].length <= max)
}
