import type { z } from 'zod'
import { fieldErrors } from './heartbeat.ts'
import { Problem } from './problem.ts'

/**
 * What a request brought, in the shape of the schema.
 * @throws Problem 422 naming each field
 */
export function valid<T extends z.ZodType>(schema: T, value: unknown): z.output<T> {
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  throw new Problem(422, 'The request is not valid; nothing was done.', { errors: fieldErrors(parsed.error) })
}
