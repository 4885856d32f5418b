import type { FieldError } from '../problem.ts'
import { isObject } from './fields.ts'
import { exampleOf, type UnreadableFields } from './unreadable-fields.ts'

/** How many names an answer has at most, and how many characters of each. */
export const MAX_NAMES = 32
const MAX_NAME = 64

/** What was left out of the heartbeats of one request. It is counted when report() is called, once the sender is known. */
export class Ignored {
  #names: Set<string> | undefined
  #unknown = 0
  /** A device is null if it is that of the token. */
  #unreadable: { deviceId: number | null; field: string; example: string }[] | undefined

  constructor(readonly reports: UnreadableFields) {}

  /** A field that heartbeats do not have. Most often it is a typing error. */
  unknown(name: string) {
    this.#unknown++
    this.#add(name)
  }

  /** A field that heartbeats have, with a value that cannot be read. */
  unreadable(deviceId: number | null, name: string, value: unknown) {
    this.#note(deviceId, name, value)
    this.#add(name)
  }

  /** A heartbeat that was refused: because of this field, or as a whole if the path is empty. */
  refused(deviceId: number | null, { path }: FieldError, value: unknown) {
    this.#note(deviceId, path === '' ? 'body' : path, path !== '' && isObject(value) ? value[path] : value)
  }

  /** @param own the device of the token; null for a gateway's, whose heartbeats may be of any device */
  report(own: number | null) {
    if (this.#unknown > 0) this.reports.countUnknown(this.#unknown)
    for (const { deviceId, field, example } of this.#unreadable ?? []) {
      if ((deviceId ?? own) !== null) this.reports.add((deviceId ?? own)!, field, example)
    }
  }

  /** For the answer, once each; undefined if nothing was left out. */
  get names(): string[] | undefined {
    return this.#names && [...this.#names]
  }

  #note(deviceId: number | null, field: string, value: unknown) {
    this.#unreadable ??= []
    this.#unreadable.push({ deviceId, field, example: exampleOf(value) })
  }

  #add(name: string) {
    this.#names ??= new Set()
    if (this.#names.size < MAX_NAMES) this.#names.add(name.slice(0, MAX_NAME))
  }
}
