/** First in, first out. Takes at most `size` numbers at a time. */
export class Queue {
  #items: Int32Array
  #from = 0
  length = 0

  constructor(size: number) {
    this.#items = new Int32Array(size)
  }

  push(item: number) {
    this.#items[(this.#from + this.length++) % this.#items.length] = item
  }

  shift() {
    const item = this.#items[this.#from]!
    this.#from = (this.#from + 1) % this.#items.length
    this.length--
    return item
  }
}
