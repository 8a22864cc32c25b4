# State and saved plans are unreadable without OpenBao's transit key. The token, the address and
# the CA come from the environment (BAO_TOKEN, BAO_ADDR, BAO_CACERT).
variable "transit_mount" {
  description = "Mount of OpenBao's transit engine."
  type        = string
}

variable "transit_key" {
  description = "Transit key that wraps the data keys."
  type        = string
}

terraform {
  encryption {
    key_provider "openbao" "site" {
      key_name            = var.transit_key
      transit_engine_path = "/${var.transit_mount}"
    }

    method "aes_gcm" "site" {
      keys = key_provider.openbao.site
    }

    state {
      method   = method.aes_gcm.site
      enforced = true
    }

    plan {
      method   = method.aes_gcm.site
      enforced = true
    }
  }
}
