// What can go wrong.

/** The server refused a request. The text is the server's and names the field. */
export class SessionStoreError extends Error {
  /**
   * @param {number} status
   * @param {string} detail
   */
  constructor(status, detail) {
    super(`${detail} (HTTP ${status})`);
    this.name = new.target.name;
    this.status = status;
    this.detail = detail;
  }
}

/** The server could not be reached, or not in time. What was sent may be sent again: repeating changes nothing. */
export class SessionStoreUnavailable extends SessionStoreError {}
