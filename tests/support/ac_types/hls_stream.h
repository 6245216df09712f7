// SPDX-License-Identifier: Apache-2.0
// hls::stream on the channel of ac_types.
#pragma once

#include <ac_channel.h>

namespace hls {

template <typename T>
class stream {
public:
    void write(const T& value) { channel_.write(value); }
    bool write_nb(const T& value) {
        channel_.write(value);
        return true;
    }
    T read() { return channel_.read(); }
    bool read_nb(T& value) { return channel_.nb_read(value); }
    bool empty() { return !channel_.available(1); }

private:
    ac_channel<T> channel_;
};

}  // namespace hls
