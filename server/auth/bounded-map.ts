/** At most `max` keys; one more drops the one that was set longest ago. */
export class BoundedMap<V> extends Map<string, V> {
  constructor(readonly max: number) {
    super()
  }

  override set(key: string, value: V) {
    // To the end, so that the first is always the one to go.
    this.delete(key)
    if (this.size >= this.max) this.delete(this.keys().next().value!)
    return super.set(key, value)
  }
}
