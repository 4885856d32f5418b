/** A map of at most `max` keys. When it is full, a new key replaces the one that was set longest ago. */
export class BoundedMap<V> extends Map<string, V> {
  constructor(readonly max: number) {
    super()
  }

  override set(key: string, value: V) {
    // Moves the key to the end, so that the first key is always the oldest.
    this.delete(key)
    if (this.size >= this.max) this.delete(this.keys().next().value!)
    return super.set(key, value)
  }
}
