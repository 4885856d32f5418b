/** The store answered, and the object is not there. */
export class ObjectMissing extends Error {
  constructor(url: string, cause?: unknown) {
    super(`${url}: there is no such object in the store`, { cause })
  }
}
