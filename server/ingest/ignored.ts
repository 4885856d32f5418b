import type { FieldError } from '../problem.ts'
import { isObject } from './fields.ts'
import type { UnreadableFields } from './unreadable-fields.ts'

/** How many names an answer has at most, and how many characters of each. */
export const MAX_NAMES = 32
const MAX_NAME = 64

/** What was left out of the heartbeats of one request. */
export class Ignored {
  #names: Set<string> | undefined

  constructor(readonly reports: UnreadableFields) {}

  /** A field that heartbeats do not have. Most often it is a typing error. */
  unknown(name: string) {
    this.reports.countUnknown()
    this.#add(name)
  }

  /** A field that heartbeats have, with a value that cannot be read. */
  unreadable(deviceId: number, name: string, value: unknown) {
    this.reports.add(deviceId, name, value)
    this.#add(name)
  }

  /** A heartbeat that was refused: because of this field, or as a whole if the path is empty. */
  refused(deviceId: number, { path }: FieldError, value: unknown) {
    this.reports.add(deviceId, path === '' ? 'body' : path, path !== '' && isObject(value) ? value[path] : value)
  }

  /** For the answer, once each; undefined if nothing was left out. */
  get names(): string[] | undefined {
    return this.#names && [...this.#names]
  }

  #add(name: string) {
    this.#names ??= new Set()
    if (this.#names.size < MAX_NAMES) this.#names.add(name.slice(0, MAX_NAME))
  }
}
