import type { Context, MiddlewareHandler } from 'hono'
import { z } from 'zod'
import type { AppEnv } from './env.ts'
import { type FieldError, Problem } from './problem.ts'
import { hasAtMost, STORABLE } from './text.ts'

/**
 * Checks what a request brought, and returns it in the shape of the schema.
 * @throws Problem 422 that names each wrong field
 */
export function valid<T extends z.ZodType>(schema: T, value: unknown): z.output<T> {
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  throw invalid(fieldErrors(parsed.error))
}

/**
 * Checks the query of a request, and returns it in the shape of the schema. A filter with a typo must not return other devices,
 * and an unknown value of `dry_run` must not do the real work.
 * @throws Problem 422 that names each parameter that is wrong, unknown or repeated
 */
export function validQuery<T extends z.ZodObject>(schema: T, c: Context<AppEnv>): z.output<T> {
  const known = Object.keys(schema.shape)
  const values: Record<string, string> = {}
  const errors: FieldError[] = []
  for (const [path, [first = '', ...more]] of Object.entries(c.req.queries())) {
    if (!known.includes(path))
      errors.push({ path, message: `is not a parameter of this call, which takes ${known.join(', ') || 'none'}` })
    else if (more.length > 0) errors.push({ path, message: 'must not be given twice' })
    else values[path] = first
  }
  const parsed = schema.safeParse(values)
  if (!parsed.success) errors.push(...fieldErrors(parsed.error))
  if (errors.length > 0 || !parsed.success) throw invalid(errors)
  return parsed.data
}

export const deviceId = z.int('must be a device id').positive('must be a device id')

/**
 * A JSON object with these fields and no others: a typo in an optional field must not be taken for a field that was left out.
 * Heartbeats are not read with it, because an agent may be newer than the server.
 */
export const fields = <T extends z.ZodRawShape>(shape: T) =>
  z.strictObject(shape, {
    error: issue =>
      issue.code === 'unrecognized_keys'
        ? `is not a field of this call, which takes ${Object.keys(shape).join(', ')}`
        : 'must be a JSON object',
  })

// openapi.json cannot show what refine() checks, so meta() says the same in JSON Schema.
/** Text that PostgreSQL can store, of at most `max` characters (code points). */
export const text = (min: number, max: number) =>
  z
    .string('must be a string')
    .refine(value => value.length >= min && hasAtMost(value, max), {
      error: min === 0 ? `must have at most ${max} characters` : `must have ${min} to ${max} characters`,
      // Text that is too long is not searched any further.
      abort: true,
    })
    .regex(STORABLE, 'must not contain NUL or a lone surrogate')
    .meta({ ...(min > 0 && { minLength: min }), ...(max < Infinity && { maxLength: max }) })

/** What zod found wrong, field by field. */
function fieldErrors(error: z.ZodError): FieldError[] {
  return error.issues.flatMap(issue => {
    const paths = issue.code === 'unrecognized_keys' ? issue.keys.map(key => [...issue.path, key]) : [issue.path]
    return paths.map(path => ({ path: path.map(String).join('.'), message: issue.message }))
  })
}

const none = z.object({})

/** For a route that takes no query. */
export const noQuery: MiddlewareHandler<AppEnv> = async (c, next) => {
  validQuery(none, c)
  await next()
}

function invalid(errors: FieldError[]) {
  return new Problem(422, 'The request is not valid; nothing was done.', { errors })
}
